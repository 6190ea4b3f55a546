-- Devices that several users logged in from; what stands for "none" is not one.
with

logins as (

    select * from {{ ref('user_logins') }}

),

devices as (

    select
        masked_device_id,
        count(distinct user_id) as users,
        count(*) as logins,
        min(create_date) as first_seen_on,
        max(create_date) as last_seen_on
    from logins
    where device_id_is_placeholder is not true
    group by masked_device_id

)

select * from devices
where users > 1
