-- Addresses that several users logged in from; what stands for "none" is not one.
with

logins as (

    select * from {{ ref('user_logins') }}

),

addresses as (

    select
        masked_ip,
        count(distinct user_id) as users,
        count(*) as logins,
        min(create_date) as first_seen_on,
        max(create_date) as last_seen_on
    from logins
    where ip_is_placeholder is not true
    group by masked_ip

)

select * from addresses
where users > 1
