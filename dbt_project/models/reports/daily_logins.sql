-- Logins by day, kind of device, version and locale.
with

logins as (

    select * from {{ ref('user_logins') }}

),

counted as (

    select
        create_date,
        device_type,
        app_version,
        analytics.decode_app_version(app_version) as app_version_text,
        locale,
        count(*) as logins,
        count(distinct user_id) as users,
        count(distinct masked_device_id) filter (where device_id_is_placeholder is not true) as devices,
        count(distinct masked_ip) filter (where ip_is_placeholder is not true) as ips
    from logins
    group by create_date, device_type, app_version, locale

)

select * from counted
